"""The watch: the doctor's checks each minute, and whoever is told of them."""
