"""Pure codecs, one file a dialect; `base` has the events they all turn into."""
