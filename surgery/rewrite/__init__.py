"""What passes are built on: their contract, matching, edits of graphs, lazy weights, text form."""
