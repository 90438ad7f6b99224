"""What leaves the shop: data files, configurations, tokenizer, model card."""
