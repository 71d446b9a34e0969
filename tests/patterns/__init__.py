"""Small models that broke some converter, each with the reason, and one set of checks that runs over all of them."""
