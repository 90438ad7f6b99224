"""What a pass is made of: matching, building, the contract, weights, and graphs as text."""
