"""Files written to the package: data files, configurations, tokenizer and model card."""
