"""Finance's view: what reads the books and gives them to people who close months. Nothing here ever sees a prompt."""
