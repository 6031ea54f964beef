"""From raw text to batches: tokenizer, `.bin/.idx` files, the sampling plan, and the loader."""
