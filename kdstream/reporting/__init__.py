"""What trained systems are compared by: findings, plots and one page that holds them all."""
