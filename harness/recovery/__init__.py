"""What happens after something has failed: again, elsewhere, later, or not at all. `ladder.decide` decides; the rest carries facts in and orders out."""
