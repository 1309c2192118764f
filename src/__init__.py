from src import cores as cores  # first of all: it looks at how busy the machine is while the rest is loaded
