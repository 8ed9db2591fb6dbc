"""The layouts by name. A new layout is a file of its own and a line here; a layout is imported when it is needed."""

LAYOUTS = {
    "acdc": "cinema_fast.phantom.layouts.acdc:ACDC",
    "mnms": "cinema_fast.phantom.layouts.mnms:MNMS",
    "mnms2": "cinema_fast.phantom.layouts.mnms2:MNMS2",
    "emidec": "cinema_fast.phantom.layouts.emidec:EMIDEC",
    "myops2020": "cinema_fast.phantom.layouts.myops2020:MYOPS2020",
    "nnunet": "cinema_fast.phantom.layouts.nnunet:NNUNET",
    "cinema": "cinema_fast.phantom.layouts.cinema:CINEMA",
}
