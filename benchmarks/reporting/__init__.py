"""What people see of a finished run: tables in a terminal, and a page with plots beside the figures as JSON."""
