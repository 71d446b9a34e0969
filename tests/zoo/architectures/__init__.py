"""Networks in the styles that people write by hand, with torch alone."""
