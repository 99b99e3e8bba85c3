"""Random injuries to real runs on the development cluster, for as long as wanted; the losses must stay the same to the last bit."""
