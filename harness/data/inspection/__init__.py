"""Looking into token files for what their sizes do not tell."""
