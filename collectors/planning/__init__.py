"""Say what is collected before it is: samples, their labels, shares of processes, what it takes."""
