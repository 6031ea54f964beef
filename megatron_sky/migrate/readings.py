"""The recipe of a script of which some conditions are not decided."""

from megatron_sky.migrate.recipe import translate
from megatron_sky.migrate.shell import Script
from megatron_sky.migrate.translation import TO_GIVE, Translation
from megatron_sky.records import flattened


def translate_script(script: Script, *, same_order: bool = False, megatron: str | None = None) -> Translation:
    """Of a script whose conditions leave several readings: a key on which they differ is still to be given."""
    done = translate(script.words, same_order=same_order, megatron=megatron)
    for words, why in script.readings:
        other = translate(words, same_order=same_order, megatron=megatron)
        ours, theirs = flattened(done.recipe), flattened(other.recipe)
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key) and ours.get(key) != TO_GIVE:
                *sections, leaf = key.split(".")
                here = done.recipe
                for section in sections:
                    here = here.setdefault(section, {})
                here[leaf] = [*TO_GIVE]
                done.to_give.append(f"{key}: {ours.get(key, 'not set')} or {theirs.get(key, 'not set')}: {why}")
                done.mapped = [line for line in done.mapped if f" -> {key}: " not in line]
        done.no_effect += [line for line in other.no_effect if line not in done.no_effect]
        done.no_counterpart += [line for line in other.no_counterpart if line not in done.no_counterpart]
        done.open_words += [line for line in other.open_words if line not in done.open_words]
    return done
