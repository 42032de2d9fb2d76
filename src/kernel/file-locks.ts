/** Locks of open file descriptions on a whole file (Linux fs/locks.c, F_OFD_SETLK): many shared ones, or one exclusive. They end with their description. */
export class FileLocks {
  readonly #shared = new Set<object>();
  #exclusive: object | undefined;

  /** Takes or changes the holder's lock. False: somebody else's is in the way (EAGAIN). */
  take(holder: object, kind: 'shared' | 'exclusive'): boolean {
    if (this.#exclusive !== undefined && this.#exclusive !== holder) return false;
    const others = this.#shared.size - (this.#shared.has(holder) ? 1 : 0);
    if (kind === 'exclusive' && others > 0) return false;
    this.release(holder);
    if (kind === 'shared') this.#shared.add(holder);
    else this.#exclusive = holder;
    return true;
  }

  release(holder: object): void {
    this.#shared.delete(holder);
    if (this.#exclusive === holder) this.#exclusive = undefined;
  }
}
