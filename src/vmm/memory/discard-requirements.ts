/**
 * Who needs discarding of RAM to work and who cannot live with it (QEMU system/physmem.c: ram_block_discard_disable,
 * ram_block_uncoordinated_discard_disable, ram_block_discard_require, ram_block_coordinated_discard_require). Four counters:
 * a call with `true` takes a reference or fails, a call with `false` gives it back and never fails.
 *
 * | call | fails with EBUSY when |
 * |---|---|
 * | disable | any kind is required |
 * | uncoordinatedDisable | uncoordinated discards are required |
 * | require | all, or uncoordinated, discards are disabled |
 * | coordinatedRequire | all discards are disabled |
 */
import { ERRNO } from '../../base/errors.ts';
import { assert } from '../error.ts';

export type Hold = 'take' | 'release';

export class DiscardRequirements {
  #disabled = 0;
  #uncoordinatedDisabled = 0;
  #required = 0;
  #coordinatedRequired = 0;

  get disabled(): number {
    return this.#disabled;
  }
  get uncoordinatedDisabled(): number {
    return this.#uncoordinatedDisabled;
  }
  get required(): number {
    return this.#required;
  }
  get coordinatedRequired(): number {
    return this.#coordinatedRequired;
  }

  /** ram_block_discard_disable: 0 or −EBUSY. */
  disable(hold: Hold): number {
    if (hold === 'release') {
      this.#disabled = lowered(this.#disabled, 'disabled');
      return 0;
    }
    if (this.#required > 0 || this.#coordinatedRequired > 0) return -ERRNO.EBUSY;
    this.#disabled++;
    return 0;
  }

  /** ram_block_uncoordinated_discard_disable: 0 or −EBUSY. */
  uncoordinatedDisable(hold: Hold): number {
    if (hold === 'release') {
      this.#uncoordinatedDisabled = lowered(this.#uncoordinatedDisabled, 'uncoordinated-disabled');
      return 0;
    }
    if (this.#required > 0) return -ERRNO.EBUSY;
    this.#uncoordinatedDisabled++;
    return 0;
  }

  /** ram_block_discard_require: 0 or −EBUSY. */
  require(hold: Hold): number {
    if (hold === 'release') {
      this.#required = lowered(this.#required, 'required');
      return 0;
    }
    if (this.#disabled > 0 || this.#uncoordinatedDisabled > 0) return -ERRNO.EBUSY;
    this.#required++;
    return 0;
  }

  /** ram_block_coordinated_discard_require: 0 or −EBUSY. */
  coordinatedRequire(hold: Hold): number {
    if (hold === 'release') {
      this.#coordinatedRequired = lowered(this.#coordinatedRequired, 'coordinated-required');
      return 0;
    }
    if (this.#disabled > 0) return -ERRNO.EBUSY;
    this.#coordinatedRequired++;
    return 0;
  }
}

function lowered(count: number, name: string): number {
  assert(count > 0, `a discard that is released as ${name} was taken before`);
  return count - 1;
}
