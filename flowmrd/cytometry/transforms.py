"""Display scales: logicle, arcsinh, linear, log; forward and inverse (Gating-ML 2.0 definitions, unit scale 0..1)."""
