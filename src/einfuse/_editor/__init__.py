"""What editors, notebooks and pages ask about a text: plain functions from texts to plain results, without torch."""
