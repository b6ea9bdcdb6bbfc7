"""Networks: configuration, embeddings, transformers, heads and their lazy readout."""
