"""One HTML page of training runs. Read `read`, `curves`, `tables`, `charts`, `pictures`, then `page` and its files."""
