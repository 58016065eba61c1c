"""Hook points: where an adversary or a defender can act (design section 3), one small file each."""
