# Draws what scripts/lab/report.py has written as tables: gnuplot -e 'cpus="n1 max"' bench.gnuplot
height = 330.0*words(cpus)
set terminal svg size 900,height dynamic noenhanced font "sans-serif,13" background "#ffffff"
set multiplot layout words(cpus),2 margins 0.09,0.98,55/height,1-40/height spacing 0.10,100/height
set datafile separator tab
set style data linespoints
set key bottom right samplen 2 font ",11"
set grid ytics lc "#dddddd"
set border 3
set tics nomirror
set pointsize 0.6
set linetype 1 lc "#52525b" lw 2 dt 2 pt 7
set linetype 2 lc "#0b5fa5" lw 2 pt 7
set linetype 3 lc "#c2410c" lw 2 pt 7
set linetype 4 lc "#15803d" lw 2 pt 7
set linetype 5 lc "#7e22ce" lw 2 pt 7
set linetype 6 lc "#a16207" lw 2 pt 7
set format y "%.0s%c"
set yrange [0:*]
do for [cpu in cpus] {
	set title cpu.": enable and touch 64 MiB again, instructions"
	set xlabel "pages marked, percent"
	unset logscale x
	set xrange [0:100]
	set xtics auto
	plot for [i=2:4] cpu."-shares" using 1:i title columnheader(i)
	set title cpu.": paging on demand, instructions a page"
	set xlabel "vCPUs"
	set logscale x 2
	set xtics (1, 2, 4, 8)
	set xrange [1:8.5]
	plot for [i=2:7] cpu."-demand" using 1:i title columnheader(i)
}
unset multiplot
