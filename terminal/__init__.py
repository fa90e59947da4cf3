"""How things look in a terminal: the console, tables, progress and the chat; decides nothing."""
