"""Programs for the controller: standard library only, because they run before anything is installed."""
