"""The layouts that lean was chosen from: bias, variance, bytes, time and accuracy."""
