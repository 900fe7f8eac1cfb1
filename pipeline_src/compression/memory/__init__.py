"""Where the memory of a training step goes, told without taking the step."""
