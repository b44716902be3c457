"""From raw video and captions to batches. Knows nothing of the network, of jobs or of Ray Train."""
