"""How a study is searched: settings, searcher, lanes, tracking, report and the commands."""
