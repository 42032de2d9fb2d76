/** One thing that was looked at: what it is called, what is there, what should be. */
export interface Check {
  readonly name: string;
  readonly ok: boolean;
  readonly got: string;
  readonly want: string;
}

/** What came of a check. */
export type Outcome = Omit<Check, 'name'>;

/** Collects checks in the order in which they are made. */
export class Checks {
  readonly list: Check[] = [];
  readonly #outstanding: Promise<void>[] = [];

  /** Returns `ok`. */
  add(name: string, ok: boolean, got: string | number | bigint, want: string | number | bigint): boolean {
    this.list.push({ name, ok, got: String(got), want: String(want) });
    return ok;
  }

  /** Equal texts or numbers. */
  equal(name: string, got: string | number | bigint, want: string | number | bigint): boolean {
    return this.add(name, got === want, got, want);
  }

  /** A check whose outcome comes later, at its place among the others. Until then it fails. */
  addOutcome(name: string, outcome: Promise<Outcome>): void {
    const place = this.list.length;
    this.add(name, false, 'not known yet', '');
    this.#outstanding.push(
      outcome.then((known) => {
        this.list[place] = { name, ...known };
      }),
    );
  }

  /** When each outcome has come. */
  async settled(): Promise<void> {
    await Promise.all(this.#outstanding);
  }
}
