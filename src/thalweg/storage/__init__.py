"""Files that survive a crash: written whole or not at all, folders of unfinished work, logs of lines."""
