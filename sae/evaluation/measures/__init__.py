"""The numbers themselves: accuracies, their intervals, the distance between sets of pictures."""
