"""Rules of containers and pods, which every component and runtime has."""
