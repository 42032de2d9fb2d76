/** A host-side write to a page that the RMP gives to somebody else: the host's #PF with error bit 31 (reference svm.md, section 5). */
export class RmpViolation extends Error {
  override readonly name = 'RmpViolation';
  /** System physical address of the write. */
  readonly spa: number;

  constructor(spa: number) {
    super(`RMP violation: a host write to 0x${spa.toString(16)}, an assigned page`);
    this.spa = spa;
  }
}
