package watchdog

// Virtual placeholder until merged.
func Virtual() (bool, string) { return false, "" }
