"""What can be measured of synthetic images: numbers from arrays, without any model or job."""
