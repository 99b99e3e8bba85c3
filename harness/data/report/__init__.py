"""What is in token files, as one page: size, lengths, languages, duplicates and what repeats itself, source beside source."""
