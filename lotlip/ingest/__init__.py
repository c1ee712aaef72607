"""Published captions, as their authors wrote them, to rows that all look alike."""
