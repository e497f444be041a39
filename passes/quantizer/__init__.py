"""What fewer bits lose, and the codes, scales and zeros that lose least."""
