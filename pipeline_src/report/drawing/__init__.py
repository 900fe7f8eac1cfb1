"""What figures share: style, scales, places of labels, files. No torch."""
