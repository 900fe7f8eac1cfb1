"""Edge-sized tensors: messages as expressions, formed range by range."""
