"""Who trains together: everything that knows Flower and Ray."""
