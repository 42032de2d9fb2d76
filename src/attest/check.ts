/** One thing that was looked at: what it is called, what is there, what should be. */
export interface Check {
  readonly name: string;
  readonly ok: boolean;
  readonly got: string;
  readonly want: string;
}

/** Collects checks in the order in which they are made. */
export class Checks {
  readonly list: Check[] = [];

  /** Returns `ok`. */
  add(name: string, ok: boolean, got: string | number | bigint, want: string | number | bigint): boolean {
    this.list.push({ name, ok, got: String(got), want: String(want) });
    return ok;
  }

  /** Equal texts or numbers. */
  equal(name: string, got: string | number | bigint, want: string | number | bigint): boolean {
    return this.add(name, got === want, got, want);
  }
}
