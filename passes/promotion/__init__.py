"""What promote-groups may choose from, and which budgets can be met."""
