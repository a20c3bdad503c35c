"""One machine of spot under a deadline: when to take it, which zone's, and when to go to on-demand instead."""
