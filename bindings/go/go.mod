module moenn

go 1.19
