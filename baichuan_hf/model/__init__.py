"""The model: what is copied to the Hub beside the weights. One flat folder whose modules import only siblings."""
