"""What an embedding is: instructions, tokens, attention, pooling, and the model that puts them together."""
